"""Every row of the error table, in every dialect."""

import json

import pytest

from tei_manager.domain import errors
from tei_manager.surfaces.http.errors import TABLE, Dialect, dialect_of, render


@pytest.mark.parametrize("code", sorted(TABLE))
def test_a_row_in_every_dialect(code):
    status, word = TABLE[code]
    error = errors.TeiManagerError("text", code=code)
    control, openai, contested = (render(error, dialect, "rid") for dialect in Dialect)
    assert control.status == openai.status == contested.status == status

    body = json.loads(control.body)
    assert list(body) == ["error", "code", "timestamp", "request_id"]
    assert (body["error"], body["request_id"]) == ("text", "rid")
    assert body["code"] == ("FORBIDDEN" if code.endswith("_NOT_ALLOWED") and status == 403 else code)
    assert ("retry-after", "1") in control.headers or status not in (429, 503)

    body = json.loads(openai.body)["error"]
    assert list(body) == ["message", "type", "param", "code"]
    assert body["code"] == (word or code.lower())
    assert (body["type"] == "server_error") == (status >= 500)
    assert (("x-should-retry", "false") in openai.headers) == (status < 500 and status not in (408, 429))

    assert json.loads(contested.body) == {"error": body, "message": "text", "detail": "text", "id": "rid"}


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (errors.Conflict("x", code="NEW_CODE"), 409),
        (errors.CallerError("x", code="NEW_CODE"), 400),
        (errors.CapacityError("x", code="NEW_CODE"), 422),
        (errors.NotReady("x", code="NEW_CODE"), 503),
        (errors.UpstreamTimeout("x", code="NEW_CODE"), 504),
        (errors.UpstreamError("x", code="NEW_CODE"), 502),
        (errors.StateError("x"), 500),
        (KeyError("x"), 500),
    ],
)
def test_a_code_that_is_not_in_the_table_has_the_status_of_its_type(error, status):
    assert render(error, Dialect.OPENAI, "rid").status == status


def test_the_dialect_of_a_path():
    assert dialect_of("/v1/embeddings/") is Dialect.CONTESTED
    assert dialect_of("/v1/models") is dialect_of("/openai/x") is Dialect.OPENAI
    assert dialect_of("/instances") is dialect_of("/v1x") is Dialect.CONTROL
