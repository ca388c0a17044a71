"""Quantisers against vector-quantize-pytorch: ids, vectors, losses and gradients."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.models import FSQ, LFQ, VQ, ResidualVQ

pytestmark = pytest.mark.hf


@pytest.fixture(scope="module")
def peer():
    return pytest.importorskip("vector_quantize_pytorch")


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch")


def ours(quantizer, z, state, weight):
    """(vectors, ids, loss, gradient of weighted vectors and of the mean loss)."""

    def total(z):
        found = quantizer.quantize(z, state)
        return jnp.sum(found.vector_ND * weight) + jnp.mean(found.loss_N), found

    gradient, found = jax.grad(total, has_aux=True)(jnp.asarray(z))
    return (*(np.asarray(x) for x in found), np.asarray(gradient))


def theirs(torch, module, z, weight, loss_of=lambda out: out[2].sum()):
    """The same of a module of the peer, in training."""
    z = torch.tensor(z[None], requires_grad=True)
    out = module(z)
    loss = loss_of(out)
    ((out[0][0] * torch.tensor(weight)).sum() + loss).backward()
    return out[0][0].detach().numpy(), out[1][0].numpy(), float(loss.detach()), z.grad[0].numpy()


def drawn(width: int, scale: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    z, weight = np.random.default_rng(0).normal(size=(2, 64, width)).astype(np.float32)
    return z * scale, weight


@pytest.mark.parametrize("symmetric", [False, True])
def test_fsq(peer, torch, symmetric):
    levels = (8, 6, 5, 4)
    (z, weight), quantizer = drawn(4), FSQ(levels=levels, symmetric=symmetric)
    module = peer.FSQ(levels=list(levels), preserve_symmetry=symmetric).train()
    vector, ids, _, gradient = ours(quantizer, z, {}, weight)
    want = theirs(torch, module, z, weight, lambda out: torch.zeros(()))
    np.testing.assert_allclose(vector, want[0], atol=1e-5)
    np.testing.assert_array_equal(ids[:, 0], want[1])
    np.testing.assert_allclose(gradient, want[3], atol=1e-4)
    codes = module.indices_to_codes(torch.arange(960)[None])[0].numpy()
    np.testing.assert_allclose(quantizer.vectors(jnp.arange(960)[:, None], {}), codes, atol=1e-6)


@pytest.mark.parametrize("spherical", [False, True])
def test_lfq(peer, torch, spherical):
    (z, weight), bits = drawn(6, 0.05), 6
    quantizer = LFQ(bits=bits, spherical=spherical, temperature=0.2, diversity=0.7)
    module = peer.LFQ(
        codebook_size=2**bits, dim=bits, entropy_loss_weight=0.1, commitment_loss_weight=0.25,
        diversity_gamma=0.7, spherical=spherical,
    ).train()  # fmt: skip
    forward = module.forward
    module.forward = lambda x: forward(x, inv_temperature=1 / 0.2)
    vector, ids, loss, gradient = ours(quantizer, z, {}, weight)
    want = theirs(torch, module, z, weight)
    np.testing.assert_allclose(vector, want[0], atol=1e-5)
    turned = [int(f"{k:0{bits}b}"[::-1], 2) for k in want[1]]  # the peer's first bit is worth most
    np.testing.assert_array_equal(ids[:, 0], turned)
    np.testing.assert_allclose(loss.mean(), want[2], atol=1e-4)
    np.testing.assert_allclose(gradient, want[3], atol=1e-4)


@pytest.mark.parametrize("gradient_of", ["straight", "rotation"])
@pytest.mark.parametrize("cosine", [False, True])
def test_vq(peer, torch, cosine, gradient_of):
    z, weight = drawn(5)
    quantizer = VQ(num_codes=20, width=5, cosine=cosine, gradient=gradient_of, decay=0.9,
                   dead_threshold=0.0)  # fmt: skip
    state = quantizer.init(jax.random.key(0))
    codes = torch.tensor(np.asarray(state["codes"]))
    module = peer.VectorQuantize(
        dim=5, codebook_size=20, decay=0.9, commitment_weight=1.0, use_cosine_sim=cosine,
        rotation_trick=gradient_of == "rotation",
    ).train()  # fmt: skip
    module._codebook.embed.data.copy_(codes[None])
    vector, ids, loss, gradient = ours(quantizer, z, state, weight)
    want = theirs(torch, module, z, weight)
    np.testing.assert_allclose(vector, want[0], atol=1e-5)
    np.testing.assert_array_equal(ids[:, 0], want[1])
    np.testing.assert_allclose(loss.mean(), want[2], rtol=1e-4)
    np.testing.assert_allclose(gradient, want[3], atol=1e-4)


def test_residual(peer, torch):
    z, weight = drawn(5)
    quantizer = ResidualVQ(of=VQ(num_codes=20, width=5, cosine=False), num_codebooks=3)
    state = quantizer.init(jax.random.key(0))
    module = peer.ResidualVQ(
        dim=5, codebook_size=20, num_quantizers=3, commitment_weight=1.0, rotation_trick=False,
    ).train()  # fmt: skip
    for layer, codes in zip(module.layers, np.asarray(state["codes"]), strict=True):
        layer._codebook.embed.data.copy_(torch.tensor(codes)[None])
    vector, ids, loss, gradient = ours(quantizer, z, state, weight)
    want = theirs(torch, module, z, weight)
    np.testing.assert_allclose(vector, want[0], atol=1e-5)
    np.testing.assert_array_equal(ids, want[1] + 20 * np.arange(3))
    np.testing.assert_allclose(loss.mean(), want[2], rtol=1e-4)
    # The peer adds the straight-through gradients of its codebooks, three times that of the sum.
    np.testing.assert_allclose(gradient - weight, want[3] - 3 * weight, atol=1e-4)
