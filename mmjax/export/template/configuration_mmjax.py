"""What an exported mmjax encoder is: its streams, its lanes of blocks, its sizes."""

from transformers import PretrainedConfig


class MMJaxConfig(PretrainedConfig):
    """Configuration of `MMJaxModel`.

    Fields:
      streams: by name {lane, table, piece_width, grid, projection, stem}: the lane it goes through;
        the name of its embedding table (empty = continuous) or the width of its pieces; the grid
        of its positions (absent = a sequence); the width of its embedding; the convolutions that
        its pieces go through first (absent = none): {pieces: pictures, rows and columns of the
        grid, then rows, columns and channels of a piece; stages: {wide, out, stride, reach}}.
      tables: rows of each embedding table.
      lanes: by name, its blocks in order: {} for a dense one, {num_experts, width,
        num_experts_per_tok} for one with experts.
    """

    model_type = "mmjax"

    def __init__(
        self,
        streams=None,
        tables=None,
        lanes=None,
        width=128,
        num_heads=4,
        num_kv_heads=4,
        head_dim=32,
        mlp_width=384,
        norm="rms",
        norm_eps=1e-6,
        qk_norm=True,
        position="sincos",
        max_wavelength=10_000.0,
        **kwargs,
    ):
        self.streams, self.tables, self.lanes = streams or {}, tables or {}, lanes or {}
        self.width, self.num_heads, self.num_kv_heads = width, num_heads, num_kv_heads
        self.head_dim, self.mlp_width = head_dim, mlp_width
        self.norm, self.norm_eps, self.qk_norm = norm, norm_eps, qk_norm
        self.position, self.max_wavelength = position, max_wavelength
        super().__init__(**kwargs)
