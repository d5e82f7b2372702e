"""Parquet shards to a model artifact, with TorchRec and Petastorm."""
