"""The finished gateway of chapter 09: ``uvicorn support.gateway.app:app``, with GATEWAY_UPSTREAMS in the environment.

`settings` says what can be set. `pipeline` is the way of a request; it needs no network, and `protect`, `flight` and
`answer` are its parts. `client`, `relay`, `headers` and `guard` are the way to the upstreams. `app` is the ASGI
application, `exchange` one request to it, `proxy` one that is streamed, `observe` what it tells about itself.
"""

from support.gateway.answer import Answer, Part, Reply, UnknownService, UpstreamFailed
from support.gateway.app import create_app
from support.gateway.pipeline import Gateway
from support.gateway.settings import Settings

__all__ = ["Answer", "Gateway", "Part", "Reply", "Settings", "UnknownService", "UpstreamFailed", "create_app"]
