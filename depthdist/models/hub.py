"""The model hub: whether it can be reached, and which default model this machine can load."""

from __future__ import annotations

import http.client
import logging
import os
import urllib.error
import urllib.request

from huggingface_hub import try_to_load_from_cache

from depthdist.models.settings import DEFAULT_MODEL

logger = logging.getLogger(__name__)


def is_hub_reachable() -> bool:
    """Return whether the hub answers now.

    One short request: huggingface_hub itself would retry for a minute before it gives up.
    """
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    try:
        urllib.request.urlopen(urllib.request.Request(endpoint, method="HEAD"), timeout=5)
    except urllib.error.HTTPError:
        return True
    except (OSError, ValueError, http.client.HTTPException) as err:
        logger.info("hub not reached (%s): only its cache is used", err)
        return False
    return True


def default_reachable_model() -> str:
    """Return DEFAULT_MODEL if the hub or its local cache has it, else `built-in`."""
    cached = isinstance(try_to_load_from_cache(DEFAULT_MODEL, "model.safetensors"), str)
    return DEFAULT_MODEL if cached or is_hub_reachable() else "built-in"
