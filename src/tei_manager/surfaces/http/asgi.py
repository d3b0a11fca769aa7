"""The HTTP door: an app and its middleware, as one list.

`serve` it with any ASGI server; it opens and closes nothing by itself.
"""

from __future__ import annotations

from starlette.routing import Router
from starlette.types import ASGIApp

from tei_manager.ports.fleet import Fleet
from tei_manager.ports.journal import Journal
from tei_manager.ports.metrics import HttpMetrics
from tei_manager.serving.gateway import Gateway
from tei_manager.surfaces.http import layers, routing
from tei_manager.surfaces.http.control import Control
from tei_manager.surfaces.http.events import Events
from tei_manager.surfaces.http.health import Health
from tei_manager.surfaces.http.openai import OpenAi
from tei_manager.surfaces.http.settings import HttpSettings


def build_app(
    fleet: Fleet, gateway: Gateway, metrics: HttpMetrics, journal: Journal, settings: HttpSettings
) -> ASGIApp:
    """The whole HTTP surface as one ASGI app."""
    routes = [
        *OpenAi(fleet, gateway, settings).routes(),
        *Control(fleet, metrics, settings).routes(),
        *Health(fleet).routes(),
        *Events(fleet, journal).routes(),
    ]
    app: ASGIApp = Router(routes, redirect_slashes=False, default=routing.unknown)
    middleware: list[layers.Layer] = [  # outermost first
        layers.guard,
        layers.request_id,
        layers.access(metrics),
        layers.errors_told,
        layers.drain_gate(lambda: fleet.is_draining),
        layers.host_and_origin(settings),
    ]
    for layer in reversed(middleware):
        app = layer(app)
    return app
