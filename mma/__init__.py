"""Mixture-of-modality adapters for frozen models: attach, train, switch, save, load."""

from mma.adapters import Adapters as Adapters
from mma.adapters import SiteReport as SiteReport
from mma.config import MMAConfig as MMAConfig
from mma.errors import AdapterError as AdapterError
from mma.sites import Site as Site
