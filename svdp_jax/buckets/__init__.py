"""Folders and files in buckets of Google Cloud Storage, by names such as gs://bucket/run: their copies on this machine."""
