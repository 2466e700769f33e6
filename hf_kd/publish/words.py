"""What to tell someone whom the Hub refused, without any access token in it."""

import re
import shlex
from typing import Any

from huggingface_hub import get_token
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalTokenNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

TOKEN = re.compile(r"hf_[A-Za-z0-9]{30,}")
LOGIN = "Log in with `hf auth login`, or set HF_TOKEN to a token with write access"


class PushError(RuntimeError):
    """A push failed; what was to be pushed is still on disk.

    Args:
        message: What failed and how to do it again.
        result: The result of the run that was to be pushed, if there is one.
    """

    def __init__(self, message: str, result: Any = None):
        super().__init__(message)
        self.result = result


def failure(
    error: Exception, folder: Any, repo_id: str, private: Any = None, revision: Any = None, create_pr: bool = False
) -> str:
    """What to tell someone whose push failed: what is safe, why it failed, how to do it again."""
    again = f"hf-kd push {shlex.quote(str(folder))} {repo_id}" + " --private" * bool(private)
    again += f" --revision {revision}" * (revision not in (None, "main")) + " --create-pr" * bool(create_pr)
    return (
        f"Nothing of {folder} is lost, but pushing it to {repo_id} failed: {hidden(reason(error))} Push it again "
        f"with: {again}"
    )


def reason(error: BaseException) -> str:
    """Why the Hub did not take or give something, as a sentence with what to do."""
    chain = [error]
    while chain[-1].__cause__ is not None:
        chain.append(chain[-1].__cause__)
    answered = next((e for e in chain if isinstance(e, HfHubHTTPError) and e.response is not None), None)
    if any(isinstance(e, LocalTokenNotFoundError) for e in chain):
        return f"there is no token. {LOGIN}."
    if answered is None:
        broken = isinstance(chain[-1], OSError) or type(chain[-1]).__module__.startswith("http")
        return f"{one_line(chain[-1])} ({type(chain[-1]).__name__}).{' Check the connection.' if broken else ''}"
    status = answered.response.status_code
    if isinstance(answered, GatedRepoError):
        return "access to it is gated. Ask for it on its page, and log in with `hf auth login`."
    if isinstance(answered, RevisionNotFoundError):
        return "the revision does not exist there (any more)."
    if status == 401:
        return f"the Hub does not know who you are (401): no token, or one that is not valid. {LOGIN}."
    if status == 403:
        return f"your token may not write there (403). {LOGIN}, and check that you belong to the organisation."
    if isinstance(answered, RepositoryNotFoundError) or status == 404:
        return "there is no such repository, or your token may not see it (404)."
    if status == 429:
        wait = answered.response.headers.get("Retry-After")
        return f"the Hub asks to slow down (429). Wait {f'{wait} s' if wait else 'a few minutes'}."
    return f"{one_line(answered)}."


def hidden(text: str, *secrets: str | None) -> str:
    """`text` without access tokens, whatever wrote them there."""
    for secret in filter(None, (*secrets, get_token())):
        text = text.replace(secret, "<token>")
    return TOKEN.sub("<token>", text)


def one_line(error: BaseException) -> str:
    """An error's text without line breaks and final stop."""
    return " ".join(str(error).split()).rstrip(".")
