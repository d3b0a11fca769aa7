"""tei-manager: one control plane and one front door for self-hosted inference servers."""
