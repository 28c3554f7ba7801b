"""A scripted kubectl and operator for one RayService, as a program with the arguments FOLDER WORDS...

FOLDER has `rayservice.json` and `dashboard` with the address of a scripted dashboard. A patch changes the
file and, as KubeRay's operator would, sends the new `serveConfigV2` to that dashboard. `calls` records all
words.
"""

from __future__ import annotations

import base64
import json
import sys
import time
from pathlib import Path
from urllib.request import Request, urlopen

import yaml

TOKEN = "the-token-of-ray"


def main(folder: Path, words: list[str]) -> None:
    with (folder / "calls").open("a") as calls:
        calls.write(" ".join(words) + "\n")
    verb, *more = [word for word in words if word not in ("--namespace", "prod")]
    file, dashboard = folder / "rayservice.json", (folder / "dashboard").read_text()
    if (folder / "refuses").exists():
        sys.exit((folder / "refuses").read_text())
    match verb, *more[:2]:
        case "get", "rayservice", "r2":
            print(file.read_text())
        case "get", "secret", "r2-cluster-1":
            print(base64.b64encode(TOKEN.encode()).decode(), end="")
        case "patch", "rayservice", "r2":
            resource = json.loads(file.read_text())
            resource["spec"] |= json.loads(Path("/dev/stdin").read_text())["spec"]
            file.write_text(json.dumps(resource))
            if not (folder / "operator-is-away").exists():
                config = yaml.safe_load(resource["spec"]["serveConfigV2"])
                url, body = f"http://{dashboard}/api/serve/applications/", json.dumps(config).encode()
                urlopen(Request(url, data=body, method="PUT")).close()
        case "port-forward", "service/r2-head-svc", ":8265":
            print(f"Forwarding from {dashboard} -> 8265", flush=True)
            time.sleep(60)
        case _:
            sys.exit(f"scripted kubectl does not know {words}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
