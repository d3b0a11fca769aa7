"""Generated protobuf stubs (public: users import them from here) and two helpers to build requests."""
