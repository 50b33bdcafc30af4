//! `x-kubernetes-validations` on the `cel` crate (KS §11.4).
