//! What the C side is told: every function, type and constant is declared once, by one of these macros.
//!
//! A declaration becomes the Rust item and, in test builds, an entry of a table from which `header` writes the header and
//! the linker's map. The C spelling of a type comes from the Rust type itself (the trait `CType`).

#[cfg(test)]
use std::ffi::{c_char, c_int, c_void};

/// A type that both sides know.
#[cfg(test)]
pub(super) trait CType {
    /// `name` declared with this type, in C.
    fn declare(name: &str) -> String;
}

/// Spells types that C has already.
#[cfg(test)]
macro_rules! spelled {
    ($($type:ty => $text:literal),* $(,)?) => {
        $(impl CType for $type {
            fn declare(name: &str) -> String {
                join($text, name)
            }
        })*
    };
}

/// A pointer's star stands with the name.
#[cfg(test)]
pub(super) fn join(spelled: &str, name: &str) -> String {
    if name.is_empty() || spelled.ends_with('*') { format!("{spelled}{name}") } else { format!("{spelled} {name}") }
}

#[cfg(test)]
spelled! {
    () => "void",
    c_int => "int",
    i64 => "int64_t",
    u32 => "uint32_t",
    u64 => "uint64_t",
    usize => "size_t",
    *const c_char => "const char *",
    *const c_void => "const void *",
    *mut c_void => "void *",
}

#[cfg(test)]
impl<const LENGTH: usize> CType for [c_char; LENGTH] {
    fn declare(name: &str) -> String {
        format!("char {name}[{LENGTH}]")
    }
}

/// A declared function.
#[cfg(test)]
pub(super) struct Function {
    pub(super) name: &'static str,
    pub(super) doc: &'static [&'static str],
    /// With the names and types of the arguments, in C.
    pub(super) declaration: fn() -> String,
}

/// A declared constant.
#[cfg(test)]
pub(super) struct Constant {
    pub(super) name: &'static str,
    pub(super) doc: &'static [&'static str],
    pub(super) value: u64,
}

/// A declared structure, with its fields; without any it is a handle.
#[cfg(test)]
pub(super) struct Structure {
    pub(super) name: &'static str,
    pub(super) doc: &'static [&'static str],
    pub(super) fields: fn() -> Vec<(&'static [&'static str], String)>,
}

/// A declared type of callback.
#[cfg(test)]
pub(super) struct CallbackType {
    pub(super) doc: &'static [&'static str],
    /// As the type of a pointer, in C.
    pub(super) declaration: fn() -> String,
}

/// Declares functions. The body gives a `Result<_, Failure>`: what becomes of it is for `Answer`, and so is a panic.
macro_rules! functions {
    ($($(#[doc = $doc:literal])* fn $name:ident($($argument:ident: $type:ty),* $(,)?) -> $answer:ty $body:block)*) => {
        $(
            $(#[doc = $doc])*
            ///
            /// # Safety
            /// Pointers that are not NULL point at what the C header says, for as long as that says.
            #[unsafe(no_mangle)]
            pub unsafe extern "C" fn $name($($argument: $type),*) -> $answer {
                $crate::capi::failure::answered(move || $body)
            }
        )*

        #[cfg(test)]
        pub(super) const FUNCTIONS: &[$crate::capi::declare::Function] = &[$($crate::capi::declare::Function {
            name: stringify!($name),
            doc: &[$($doc),*],
            declaration: || {
                use $crate::capi::declare::CType;
                let arguments: Vec<String> = vec![$(<$type>::declare(stringify!($argument))),*];
                let arguments = if arguments.is_empty() { "void".to_owned() } else { arguments.join(", ") };
                <$answer>::declare(&format!("{}({arguments})", stringify!($name)))
            },
        }),*];
    };
}

/// Declares constants.
macro_rules! constants {
    ($($(#[doc = $doc:literal])* $name:ident: $type:ty = $value:expr;)*) => {
        $($(#[doc = $doc])* pub const $name: $type = $value;)*

        #[cfg(test)]
        pub(super) const CONSTANTS: &[$crate::capi::declare::Constant] = &[$($crate::capi::declare::Constant {
            name: stringify!($name),
            doc: &[$($doc),*],
            value: $name as u64,
        }),*];
    };
}

/// Declares structures with their names in C. One without fields is a handle: C sees pointers to it only.
macro_rules! structures {
    ($($(#[doc = $doc:literal])* $name:ident = $c_name:ident {
        $($(#[doc = $field_doc:literal])* $field:ident: $type:ty,)*
    })*) => {
        $(
            $(#[doc = $doc])*
            #[repr(C)]
            #[derive(Clone, Copy, Debug)]
            pub struct $name {
                $($(#[doc = $field_doc])* pub $field: $type,)*
            }

            #[cfg(test)]
            impl $crate::capi::declare::CType for *mut $name {
                fn declare(name: &str) -> String {
                    $crate::capi::declare::join(concat!(stringify!($c_name), " *"), name)
                }
            }

            #[cfg(test)]
            impl $crate::capi::declare::CType for *const $name {
                fn declare(name: &str) -> String {
                    $crate::capi::declare::join(concat!("const ", stringify!($c_name), " *"), name)
                }
            }

            #[cfg(test)]
            impl $crate::capi::declare::CType for *mut *mut $name {
                fn declare(name: &str) -> String {
                    $crate::capi::declare::join(concat!(stringify!($c_name), " **"), name)
                }
            }
        )*

        #[cfg(test)]
        pub(super) const STRUCTURES: &[$crate::capi::declare::Structure] = &[$($crate::capi::declare::Structure {
            name: stringify!($c_name),
            doc: &[$($doc),*],
            fields: || {
                #[allow(unused_imports, reason = "handles have no fields")]
                use $crate::capi::declare::CType;
                vec![$((&[$($field_doc),*] as &'static [&'static str], <$type>::declare(stringify!($field)))),*]
            },
        }),*];
    };
}

/// Declares types of callbacks with their names in C.
macro_rules! callbacks {
    ($($(#[doc = $doc:literal])* $name:ident = $c_name:ident($($argument:ident: $type:ty),*) -> $answer:ty;)*) => {
        $(
            $(#[doc = $doc])*
            pub type $name = Option<unsafe extern "C" fn($($argument: $type),*) -> $answer>;

            #[cfg(test)]
            impl $crate::capi::declare::CType for $name {
                fn declare(name: &str) -> String {
                    $crate::capi::declare::join(stringify!($c_name), name)
                }
            }
        )*

        #[cfg(test)]
        pub(super) const CALLBACKS: &[$crate::capi::declare::CallbackType] = &[$($crate::capi::declare::CallbackType {
            doc: &[$($doc),*],
            declaration: || {
                use $crate::capi::declare::CType;
                let arguments: Vec<String> = vec![$(<$type>::declare(stringify!($argument))),*];
                <$answer>::declare(&format!("(*{})({})", stringify!($c_name), arguments.join(", ")))
            },
        }),*];
    };
}

pub(super) use {callbacks, constants, functions, structures};
