//! Accessors of object metadata and its validation common to all kinds (KS §6.4).
