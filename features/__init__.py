"""The contract both halves share: what a feature is, and how a raw value becomes an id."""
