"""Refusals: answers after which no request of the same kind can succeed, in words that say what to do."""

from __future__ import annotations

from botocore import exceptions  # type: ignore[import-untyped]
from botocore.exceptions import ClientError  # type: ignore[import-untyped]

from st.errors import StoreUnreachable

_EXPIRED = ("ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "RequestExpired")
_WRONG = {
    "InvalidAccessKeyId": "the server does not know the access key",
    "SignatureDoesNotMatch": "the secret does not belong to the access key, or something between here and there "
    "changes requests",
    "InvalidToken": "the session token is not valid",
    "InvalidClientTokenId": "the server does not know the access key",
    "AuthorizationHeaderMalformed": "the request was signed for another region",
    "RequestTimeTooSkewed": "this machine's clock is wrong",
    "InvalidSecurity": "the credentials are not valid",
    "AccountProblem": "there is a problem with the account",
    "NotSignedUp": "the account is not signed up for S3",
    "PermanentRedirect": "the bucket is in another region",
}
_FIXES = {
    "AuthorizationHeaderMalformed": "Set region to the bucket's.",
    "PermanentRedirect": "Set region to the bucket's.",
    "RequestTimeTooSkewed": "Set the clock.",
}
_MISSING = (
    exceptions.NoCredentialsError,
    exceptions.PartialCredentialsError,
    exceptions.CredentialRetrievalError,
    exceptions.TokenRetrievalError,
    exceptions.SSOError,
    exceptions.ProfileNotFound,
)
_RENEW = (
    "Renew them (`aws sso login`, a new AWS_SESSION_TOKEN, ...) and start again; a run goes on with --resume. "
    "Profiles that renew themselves do not end a run."
)
_GIVE = "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or profile to a section of ~/.aws/credentials."


def code_of(error: BaseException) -> str:
    """The server's code for what went wrong ("NoSuchKey", "412"); '' where the error is none of a server's answers."""
    cause = error if isinstance(error, ClientError) else error.__cause__
    return str(cause.response.get("Error", {}).get("Code", "")) if isinstance(cause, ClientError) else ""


def is_expired(error: BaseException) -> bool:
    return code_of(error) in _EXPIRED


def refusal(error: BaseException, endpoint: str | None, bucket: str) -> StoreUnreachable | None:
    """The error to stop with; None for one that may pass, or that is about one object. Never shows a credential."""
    code, where = code_of(error), f"bucket {bucket!r} at {endpoint or 'AWS'}"
    if code in _EXPIRED:
        return StoreUnreachable(f"the credentials for {where} have expired.", fix=_RENEW)
    if code in _WRONG:
        return StoreUnreachable(
            f"{where} refuses the credentials: {_WRONG[code]} ({code}).", fix=_FIXES.get(code, _GIVE)
        )
    if code == "NoSuchBucket":
        return StoreUnreachable(f"{where} does not exist.", fix="Correct the url, or set endpoint.")
    if isinstance(error, exceptions.ParamValidationError):
        # Its text holds what was asked for, which may be an address with credentials.
        return StoreUnreachable("the url names no bucket that there can be.", fix="Write s3://bucket/folder.")
    if isinstance(error, _MISSING):
        return StoreUnreachable(f"{where}: no credentials can be had.", why=str(error), fix=_GIVE)
    return None
