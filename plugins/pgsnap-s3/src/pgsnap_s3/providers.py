"""What is known of the services that speak S3: where they are, and which limits and habits they have.

Sources: the multipart limits in each provider's documentation (AWS: 10,000 parts of 5 MiB to 5 GiB; Scaleway: 1,000 parts; R2:
parts of equal size), read in 2026. A preset only sets what an option leaves open.
"""

from __future__ import annotations

import attrs

__all__ = ["PROVIDERS", "Provider"]

TIB = 1 << 40


@attrs.frozen(kw_only=True)
class Provider:
    """One service's limits.

    Args:
        endpoint: Where it is; ``{region}`` is filled in. Empty: AWS's own rules, or the option must be given.
        region: The region to sign with if none is given; None: AWS's own chain.
        path_style: The bucket stands in the path and not in the host name.
        max_parts: The parts that one object may have.
        max_object: The bytes that one object may have.
        md5_etags: A part's ETag is the MD5 of its bytes, and an object's the MD5 of those and their number, unless a key of a
            key service encrypts it.
        bulk_delete: Up to 1,000 objects are deleted by one request.
    """

    endpoint: str = ""
    region: str | None = None
    path_style: bool = False
    max_parts: int = 10_000
    max_object: int = 5 * TIB
    md5_etags: bool = True
    bulk_delete: bool = True


PROVIDERS = {
    "aws": Provider(),
    "r2": Provider(region="auto", path_style=True, md5_etags=False),
    "b2": Provider(endpoint="https://s3.{region}.backblazeb2.com"),
    "gcs-interop": Provider(
        endpoint="https://storage.googleapis.com", region="auto", path_style=True, md5_etags=False, bulk_delete=False
    ),
    "wasabi": Provider(endpoint="https://s3.{region}.wasabisys.com", region="us-east-1"),
    "minio": Provider(region="us-east-1", path_style=True),
    "ceph": Provider(region="us-east-1", path_style=True),
    "scaleway": Provider(endpoint="https://s3.{region}.scw.cloud", max_parts=1_000),
    "digitalocean": Provider(endpoint="https://{region}.digitaloceanspaces.com"),
    "hetzner": Provider(endpoint="https://{region}.your-objectstorage.com"),
    "other": Provider(region="us-east-1", path_style=True),
}
"""``other`` is what an ``endpoint`` without a ``provider`` is taken for."""
