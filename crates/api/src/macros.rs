//! Macros that define plain text enums and condition enums.

/// Defines an enum of unit variants that is text in JSON, with `Display`, `as_str` and `ALL`.
///
/// The variant marked `#[default]` is the `Default`.
macro_rules! text_enum {
    ($(#[$meta:meta])* pub enum $name:ident { $($(#[$vmeta:meta])* $variant:ident),+ $(,)? }) => {
        $(#[$meta])*
        #[derive(
            Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash,
            serde::Serialize, serde::Deserialize, schemars::JsonSchema,
        )]
        pub enum $name { $($(#[$vmeta])* $variant),+ }

        impl $name {
            /// Every variant, in declared order.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The text used in the API.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => stringify!($variant)),+ }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}

/// Defines one condition type: an enum whose variants are its legal (status, reason) pairs.
///
/// `Variant = Status` uses the variant's name as reason, `Variant = Status "Reason"` another text.
/// `NotYetKnown` (status and reason `Unknown`) is added to every type.
macro_rules! condition {
    ($(#[$meta:meta])* $name:ident as $type:literal {
        $($(#[$vmeta:meta])* $variant:ident = $status:ident $($reason:literal)?),+ $(,)?
    }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $name {
            $($(#[$vmeta])* $variant,)+
            /// Status not known yet.
            NotYetKnown,
        }

        impl $crate::condition::ConditionKind for $name {
            const TYPE: &'static str = $type;
            const ALL: &'static [Self] = &[$(Self::$variant,)+ Self::NotYetKnown];

            fn status(self) -> $crate::condition::Status {
                match self {
                    $(Self::$variant => $crate::condition::Status::$status,)+
                    Self::NotYetKnown => $crate::condition::Status::Unknown,
                }
            }

            fn reason(self) -> &'static str {
                match self {
                    $(Self::$variant => condition!(@reason $variant $($reason)?),)+
                    Self::NotYetKnown => "Unknown",
                }
            }
        }
    };
    (@reason $variant:ident) => { stringify!($variant) };
    (@reason $variant:ident $reason:literal) => { $reason };
}

pub(crate) use {condition, text_enum};
