"""Generated protobuf stubs (public: users import them from here) and two helpers to build requests."""

from tei_manager.grpc.requests import Target, create_request

__all__ = ["Target", "create_request"]
