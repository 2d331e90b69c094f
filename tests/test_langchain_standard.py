"""The unmodified langchain-tests suite: local, at an OpenAI-compatible endpoint, and at a Space."""

from __future__ import annotations

import pytest
from langchain_tests.integration_tests import EmbeddingsIntegrationTests
from langchain_tests.unit_tests import EmbeddingsUnitTests

from bge_integrations.langchain import BGEEmbeddings

pytestmark = pytest.mark.slow
KEY = "sk-of-the-environment"
EN = "BAAI/bge-small-en-v1.5"


class Here:
    """The bundled model on this machine."""

    @property
    def embeddings_class(self):
        return BGEEmbeddings

    @property
    def embedding_model_params(self):
        return {"model": "demo"}

    @property
    def init_from_env_params(self):
        return {"BGE_MODEL": "bge-base"}, {}, {"model": "BAAI/bge-base-en-v1.5", "api_key": None}


class AtAnEndpoint(Here):
    """The same behind a real server that speaks OpenAI's protocol."""

    url = "http://127.0.0.1:9"

    @property
    def embedding_model_params(self):
        return {"model": "demo", "base_url": f"{self.url}/v1"}

    @property
    def init_from_env_params(self):
        variables = {"BGE_PROVIDER": "gigarouter", "BGE_MODEL": EN, "GIGAROUTER_API_KEY": KEY}
        return variables, {}, {"model": EN, "api_key": KEY}


class AtASpace(Here):
    """The same behind a real server that speaks the Space's protocol."""

    url = "http://127.0.0.1:9"

    @property
    def embedding_model_params(self):
        return {"model": "demo", "provider": "space", "base_url": self.url}

    @property
    def init_from_env_params(self):
        variables = {"BGE_PROVIDER": "space", "BGE_BASE_URL": "https://user-bge.hf.space", "BGE_API_KEY": KEY}
        return variables, {}, {"model": EN, "api_key": KEY}


@pytest.fixture
def served(request, demo_url):
    request.instance.url = demo_url


class TestUnitHere(Here, EmbeddingsUnitTests):
    pass


class TestUnitAtAnEndpoint(AtAnEndpoint, EmbeddingsUnitTests):
    pass


class TestUnitAtASpace(AtASpace, EmbeddingsUnitTests):
    pass


class TestIntegrationHere(Here, EmbeddingsIntegrationTests):
    pass


@pytest.mark.usefixtures("served")
class TestIntegrationAtAnEndpoint(AtAnEndpoint, EmbeddingsIntegrationTests):
    pass


@pytest.mark.usefixtures("served")
class TestIntegrationAtASpace(AtASpace, EmbeddingsIntegrationTests):
    pass
