"""Data sets and caches in AWS S3 and in stores that speak its protocol."""

from st_s3.backend import S3

__all__ = ["S3"]
