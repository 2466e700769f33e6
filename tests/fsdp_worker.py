"""`launch_worker` under FSDP without a GPU: accelerate shards on accelerators only, torch does it on gloo as well."""

import sys

import launch_worker
from accelerate import DistributedType
from accelerate.state import AcceleratorState

prepare = AcceleratorState.__init__


def prepare_sharded(self, *args, **kwargs):
    """As in accelerate on a GPU: with a plugin the type is FSDP."""
    prepare(self, *args, **kwargs)
    if kwargs.get("fsdp_plugin") is not None:
        self.fsdp_plugin = kwargs["fsdp_plugin"]
    if "fsdp_plugin" in self.__dict__:
        self.distributed_type = DistributedType.FSDP


if __name__ == "__main__":
    AcceleratorState.__init__ = prepare_sharded
    launch_worker.main(*sys.argv[1:])
