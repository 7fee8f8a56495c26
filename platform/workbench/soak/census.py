"""What lives in a cluster: run as a job of it, prints a line of JSON."""

import json
import logging
import os
from collections import Counter


def main() -> None:
    """Count actors by class, placement groups, and the objects in shared memory."""
    import ray
    from ray._private import internal_api, state
    from ray.util import placement_group_table

    ray.init(address=os.environ["RAY_ADDRESS"], log_to_driver=False, logging_level=logging.ERROR)
    alive = [actor["ActorClassName"] for actor in state.actors().values() if actor["State"] == "ALIVE"]
    actors = Counter(name for name in alive if name != "JobSupervisor")  # which is this job's own
    groups = [group for group in placement_group_table().values() if group["state"] != "REMOVED"]
    stores = [
        internal_api.node_stats(node["NodeManagerAddress"], node["NodeManagerPort"], False).store_stats
        for node in ray.nodes()
        if node["Alive"]
    ]
    counted = {
        "actors": actors,
        "placement_groups": len(groups),
        "objects": sum(store.num_local_objects for store in stores),
        "object_bytes": sum(store.object_store_bytes_used for store in stores),
    }
    print(json.dumps(counted), flush=True)


if __name__ == "__main__":
    main()
