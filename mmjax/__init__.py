"""mmjax: tokenize every modality, train one transformer on all of them."""

__version__ = "0.1.0"
