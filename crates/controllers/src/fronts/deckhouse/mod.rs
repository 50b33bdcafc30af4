//! The front of group `virtualization.deckhouse.io`.
