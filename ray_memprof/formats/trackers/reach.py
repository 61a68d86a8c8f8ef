"""Whether a service's server answers at all, before its library is asked, which would try again for minutes.

    check_answers("http://localhost:5000")      # ConnectionError: no server answers at http://localhost:5000: ...

Anything that a server says is an answer; whether it is the right server, and lets us in, its library finds out.
"""

import ssl
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

ANSWER_S = 10.0
"""How long a server may take for its first answer."""


def check_answers(url: str, answer_s: float = ANSWER_S) -> None:
    """Ask a server for its first page, through the proxies of the environment.

    Args:
        url: where it is; what is neither http nor https is no server, and not asked.
        answer_s: how long it may take.

    Raises:
        ConnectionError: nobody answers there.
    """
    if not url.startswith(("http://", "https://")):
        return
    try:
        urlopen(Request(url, method="HEAD"), timeout=answer_s).close()
    except HTTPError:
        return
    except (OSError, ValueError) as error:
        reason = error.reason if isinstance(error, URLError) else error
        if isinstance(
            reason, ssl.SSLError
        ):  # its library may know the certificate, and says what is wrong with it
            return
        late = f"it took more than {answer_s:g} s" if isinstance(reason, TimeoutError) else reason
        raise ConnectionError(f"no server answers at {url}: {late}") from error
