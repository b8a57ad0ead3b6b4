//! The declaration of a section.

/// Declares a section of a configuration: a struct whose fields are keys. Each field has a doc comment (what is printed beside the
/// key), a type that is [`Typed`](crate::keys::Typed), a default, and after a comma its [`Range`](crate::keys::Range); `=> may_change`
/// marks one with another value of which a run may be continued. A field `flatten` brings the keys of its type without a section of its
/// own.
///
/// The struct gets [`Default`], serde's traits, `KEYS`, and `check`.
macro_rules! section {
    (
        @define ($($strict:ident)?)
        $(#[doc = $about:literal])*
        pub struct $name:ident {
            $(
                flatten pub $flat:ident: $flat_ty:ty = $flat_default:expr;
            )?
            $(
                $(#[doc = $doc:literal])+
                pub $field:ident: $ty:ty = $default:expr $(, $range:expr)? $(=> $mark:ident)?;
            )*
        }
    ) => {
        $(#[doc = $about])*
        #[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
        $(#[serde($strict)])?
        pub struct $name {
            $(
                /// Its kind, and what keys that brings.
                #[serde(flatten)]
                pub $flat: $flat_ty,
            )?
            $(
                $(#[doc = $doc])+
                pub $field: $ty,
            )*
        }

        impl Default for $name {
            fn default() -> Self {
                $name {
                    $($flat: $flat_default,)?
                    $($field: $default,)*
                }
            }
        }

        impl $name {
            /// Its keys, in the order of printing.
            pub const KEYS: &'static [$crate::keys::Key] = &[
                $($crate::keys::section!(@key $flat: $flat_ty, $crate::keys::Range::Any, false, ""),)?
                $($crate::keys::section!(
                    @key $field: $ty,
                    $crate::keys::section!(@range $($range)?),
                    $crate::keys::section!(@mark $($mark)?),
                    concat!($($doc),+)
                ),)*
            ];

            /// Checks the range of every key; `section` is its name in the configuration.
            ///
            /// # Errors
            /// [`Error::Config`](crate::error::Error::Config) for the first that is out of range.
            pub fn check(&self, section: &str) -> $crate::error::Result<()> {
                $crate::keys::check(Self::KEYS, &$crate::keys::tree(self, section)?, section)
            }
        }

        impl $crate::keys::Typed for $name {
            const KIND: $crate::keys::Kind = $crate::keys::Kind::Section(Self::KEYS);
        }
    };
    (@key $field:ident: $ty:ty, $range:expr, $mark:expr, $doc:expr) => {
        $crate::keys::Key {
            name: stringify!($field),
            kind: <$ty as $crate::keys::Typed>::KIND,
            optional: <$ty as $crate::keys::Typed>::OPTIONAL,
            range: $range,
            may_change: $mark,
            doc: $doc,
        }
    };
    (@range) => { $crate::keys::Range::Any };
    (@range $range:expr) => { $range };
    (@mark) => { false };
    (@mark may_change) => { true };
    // Serde cannot refuse unknown fields beside flattened ones.
    ($(#[$($about:tt)*])* pub struct $name:ident { flatten $($rest:tt)* }) => {
        $crate::keys::section! {
            @define () $(#[$($about)*])* pub struct $name { flatten $($rest)* }
        }
    };
    ($(#[$($about:tt)*])* pub struct $name:ident { $($rest:tt)* }) => {
        $crate::keys::section! { @define (deny_unknown_fields) $(#[$($about)*])* pub struct $name { $($rest)* } }
    };
}

pub(crate) use section;
