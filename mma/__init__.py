"""Mixture-of-modality adapters for frozen models: attach, train, switch, merge, save, load."""

from mma.adapters import Adapters as Adapters
from mma.attach import attach as attach
from mma.config import AdapterConfig as AdapterConfig
from mma.config import BottleneckConfig as BottleneckConfig
from mma.config import LoraConfig as LoraConfig
from mma.config import MMAConfig as MMAConfig
from mma.config import PartsConfig as PartsConfig
from mma.errors import AdapterError as AdapterError
from mma.find import site_table as site_table
from mma.merge import MergeReport as MergeReport
from mma.routing import Routes as Routes
from mma.sites import Site as Site
from mma.status import ModelStatus as ModelStatus
from mma.status import SiteReport as SiteReport
