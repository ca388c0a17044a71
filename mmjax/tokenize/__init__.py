"""Tokenizing a data set before training: raw shards in, shards of tokens out."""
