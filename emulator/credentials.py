"""The keys that stand in for everybody's while the emulator is active: shaped like real ones, and
nobody's.
"""

from __future__ import annotations

__all__ = ["AWS_KEY", "BUCKET_KEYS", "FAL_KEY", "R2_ACCOUNT", "R2_KEY"]

#: Of the account: ``key-id:secret``.
FAL_KEY = "emulated-key-id:emulated-key-secret"
#: Of the test's own buckets: id and secret.
AWS_KEY = ("AKIAEMULATEDBYPYTEST", "emulated/secret+of+the+emulated+S3+bucket")
R2_KEY = ("e0e0e0e0e0e0e0e0e0e0e0e0e0e0e0e0", "emulated-secret-of-the-emulated-r2-bucket")
R2_ACCOUNT = "emulated0account0of0r2"
#: The keys whose signatures are checked; others are taken on trust, as moto does.
BUCKET_KEYS = dict((AWS_KEY, R2_KEY))
