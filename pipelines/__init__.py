"""Runnable pipelines, one file each: options, transforms, run."""

import logging

# Beam logs this on import, before any option is read, where apache-beam is installed without its Google Cloud extra.
logging.getLogger().addFilter(lambda record: not str(record.msg).startswith("apitools not found"))
