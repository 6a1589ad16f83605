"""Each process gets settings of its own, and no others."""

from __future__ import annotations

import pytest

from lightllm_mp.actors.runtime.actor_settings import FrontSettings, child_settings
from lightllm_mp.actors.runtime.launch_spec import LaunchSpec
from lightllm_mp.actors.topology import HTTP, ImageArenas, topology
from lightllm_mp.config import Config, EngineConfig, HttpConfig
from lightllm_mp.model_description import ModelDescription
from lightllm_mp.models.model_config import read_model_config
from tests.paths import GOLDENS

CONFIG = Config(engine=EngineConfig(tp=2), http=HttpConfig(api_key_file="/keys", ssl_keyfile="/tls"))
CHILDREN = [child.name for child in topology(ranks=2, images=ImageArenas(1 << 20, 1 << 20)).children]


def sent(name: str) -> LaunchSpec:
    model = ModelDescription("nowhere", read_model_config(GOLDENS / "llama"), None)
    settings = child_settings(CONFIG)[name]
    return LaunchSpec(name, "none:None", 0, HTTP, "native", settings, "info", False, model, (0, 0), (), 0)


@pytest.mark.parametrize("name", CHILDREN)
def test_the_settings_of_a_process_come_as_they_were_sent(name: str) -> None:
    launch = sent(name)
    assert LaunchSpec.read(launch.to_memfd()) == launch


@pytest.mark.parametrize("name", CHILDREN)
def test_only_the_http_process_learns_where_keys_are(name: str) -> None:
    settings = child_settings(CONFIG)[name]
    assert isinstance(settings, FrontSettings) == (name == HTTP)
    assert ("/keys" in repr(settings)) == (name == HTTP)
