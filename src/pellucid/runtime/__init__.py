"""A model at work: `Runtime`, devices and memory, number types."""

from pellucid.runtime.runtime import Runtime

__all__ = ["Runtime"]
