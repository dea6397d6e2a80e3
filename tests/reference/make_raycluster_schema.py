"""What KubeRay's operator takes as a RayCluster, from its custom resource definition:

    python -m tests.reference.make_raycluster_schema ray.io_rayclusters.yaml

That file is helm-chart/kuberay-operator/crds/ray.io_rayclusters.yaml of https://github.com/ray-project/kuberay v1.7.0 (59d663a).
Kubernetes drops fields that it does not know, or refuses them by choice; here they are refused."""

import gzip
import json
import sys
from pathlib import Path

import yaml

SCHEMA = Path(__file__).with_name("raycluster_v1.json.gz")


def closed(schema: dict) -> dict:
    """The schema without other fields than those it lists."""
    made = {key: closed(value) if isinstance(value, dict) else value for key, value in schema.items()}
    return made | ({"additionalProperties": False} if made.get("type") == "object" and "properties" in made else {})


def main() -> None:
    tree = yaml.safe_load(Path(sys.argv[1]).read_text())
    (schema,) = (
        version["schema"]["openAPIV3Schema"] for version in tree["spec"]["versions"] if version["name"] == "v1"
    )
    text = json.dumps(closed(schema), sort_keys=True, separators=(",", ":"))
    SCHEMA.write_bytes(gzip.compress(text.encode(), mtime=0))


if __name__ == "__main__":
    main()
