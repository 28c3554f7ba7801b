"""The endpoint of the schema: the real HTTP layer and pipeline over scripted models, with a client key.

It prints its address and the key when it listens.
"""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

import uvicorn

from r2_serve.config import RouterConfig, ServerConfig
from r2_serve.engines.scripted import ScriptedEngine
from r2_serve.http.api import create_app
from r2_serve.http.keys import entry_text, new_key
from r2_serve.router.router import in_process
from tests.support.in_process import allocation_json, model, plan_json, routing

REPLIES = {
    "small": "half of it",
    "large": "The whole answer of six words.",
    "decomposer": plan_json("left", "right", "join #1 and #2"),
    "allocator": allocation_json("small", "small", "large"),
}


def main(folder: Path) -> None:
    """Serves until it is stopped. The keys file goes into `folder`."""
    key, entry = new_key("tester")
    (folder / "keys.yaml").write_text(entry_text(entry))
    config = RouterConfig(
        models=tuple(model(name) for name in REPLIES),
        server=ServerConfig(keys_file=str(folder / "keys.yaml")),
    )
    router = in_process(config, routing(), lambda card: ScriptedEngine([REPLIES[card.name]]))
    listening = socket.socket(proto=socket.IPPROTO_TCP)
    listening.bind(("127.0.0.1", 0))
    listening.listen()
    print(f"http://127.0.0.1:{listening.getsockname()[1]} {key}", flush=True)
    uvicorn.Server(uvicorn.Config(create_app(router, config.server), log_config=None, lifespan="off")).run(
        sockets=[listening]
    )


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main(Path(sys.argv[1]))
