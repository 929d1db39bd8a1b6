"""Starts the page of a collection; needs the extra `annotate`.

serve(open_collection(run, 1), "127.0.0.1", 8800)
"""

import uvicorn

from posttrain.annotate.collection import Collection, is_local
from posttrain.annotate.server import Site, create_app


def serve(collection: Collection, host: str, port: int) -> None:
    """Answer requests until interrupted."""
    names = (host, "127.0.0.1", "localhost") if is_local(host) else ()
    site = Site(collection.title, tuple(f"{name}:{port}" for name in names))
    uvicorn.run(create_app(collection.store, site), host=host, port=port, log_level="warning")
