"""Clients of other makers against a running endpoint: `make conformance`. Results: docs/conformance.md."""
