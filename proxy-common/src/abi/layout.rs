//! The one place that turns ABI structs into bytes and back.

/// Defines `repr(C)` structs made of integers, arrays and other such structs only.
///
/// A struct with implicit padding doesn't compile, and each gets `to_bytes`/`from_bytes`.
macro_rules! abi_struct {
    ($(
        $(#[$meta:meta])*
        pub struct $name:ident { $( $(#[$fmeta:meta])* pub $field:ident: $ty:ty, )* }
    )*) => {$(
        $(#[$meta])*
        #[repr(C)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub struct $name { $( $(#[$fmeta])* pub $field: $ty, )* }

        impl $name {
            /// Bytes it takes in a map.
            pub const SIZE: usize = size_of::<Self>();

            /// Field name, offset and size in bytes, in order.
            pub const LAYOUT: &'static [(&'static str, usize, usize)] = &[
                $( (stringify!($field), core::mem::offset_of!(Self, $field), size_of::<$ty>()), )*
            ];

            #[inline(always)]
            pub const fn to_bytes(self) -> [u8; Self::SIZE] {
                // SAFETY: repr(C), all fields are plain data, and the assertion below rules out
                // padding, so every byte is initialised.
                unsafe { core::mem::transmute::<Self, [u8; Self::SIZE]>(self) }
            }

            #[inline(always)]
            pub const fn from_bytes(bytes: [u8; Self::SIZE]) -> Self {
                // SAFETY: every bit pattern is a value of every field type.
                unsafe { core::mem::transmute::<[u8; Self::SIZE], Self>(bytes) }
            }
        }

        const _: () = assert!(
            size_of::<$name>() == 0 $( + size_of::<$ty>() )*,
            concat!(stringify!($name), " has implicit padding"),
        );
    )*};
}

pub(crate) use abi_struct;
