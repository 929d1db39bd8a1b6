"""Starts the page of a collection; needs the extra `annotate`.

serve(open_collection(run, 1), "127.0.0.1", 8800)
"""

import uvicorn

from posttrain.annotate.collection import Collection, is_local
from posttrain.annotate.server import Site, create_app

HTTP = 80


def serve(collection: Collection, host: str, port: int) -> None:
    """Answer requests until interrupted."""
    names = ("127.0.0.1", "localhost", "[::1]") if is_local(host) else ()
    hosts = [f"{name}:{port}" for name in names]
    # Browsers leave out the port that goes without saying.
    hosts += names if port == HTTP else ()
    site = Site(collection.title, tuple(hosts))
    uvicorn.run(create_app(collection.store, site), host=host, port=port, log_level="warning")
