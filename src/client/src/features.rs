//! What a session may ask for beyond plain reads and writes.

use std::fmt;
use std::ops::BitOr;

use ferrio_shm::abi::features;

/// A set of the feature bits of the ABI.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Features(u64);

macro_rules! features {
    ($($name:ident, $text:literal, $doc:literal;)*) => {
        impl Features {
            $(#[doc = $doc] pub const $name: Features = Features(features::$name);)*

            /// All that this library knows how to use.
            pub const ALL: Features = Features($(features::$name)|*);

            fn names(self) -> impl Iterator<Item = &'static str> {
                [$((Features::$name, $text)),*]
                    .into_iter()
                    .filter(move |(feature, _)| self.contains(*feature))
                    .map(|(_, name)| name)
            }
        }
    };
}

features! {
    VECTORED, "vectored", "readv and writev.";
    DISCARD, "discard", "discard and write-zeroes.";
    COMPARE_AND_WRITE, "compare-and-write", "compare-and-write.";
    CANCEL, "cancel", "cancel, and the timeout of a request.";
    ORDER, "order", "chains and barriers.";
    CLIENT_REGIONS, "client-regions", "Memory of the client's own: [`Session::add_region`](crate::Session::add_region).";
}

impl Features {
    /// None: nop, read, write, flush, FUA and the prio class are always there.
    pub const NONE: Features = Features(0);

    pub(crate) const fn from_bits(bits: u64) -> Self {
        Features(bits)
    }

    pub(crate) const fn bits(self) -> u64 {
        self.0
    }

    /// Whether all of `other` are in it.
    #[must_use]
    pub const fn contains(self, other: Features) -> bool {
        self.0 & other.0 == other.0
    }

    /// Those that are not in `other`.
    #[must_use]
    pub const fn without(self, other: Features) -> Features {
        Features(self.0 & !other.0)
    }
}

impl BitOr for Features {
    type Output = Features;

    fn bitor(self, other: Features) -> Features {
        Features(self.0 | other.0)
    }
}

impl fmt::Debug for Features {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Features({self})")
    }
}

impl fmt::Display for Features {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.names().collect();
        if names.is_empty() { f.write_str("none") } else { f.write_str(&names.join(", ")) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_sets() {
        let two = Features::ORDER | Features::VECTORED;
        assert_eq!(two.to_string(), "vectored, order");
        assert_eq!(Features::NONE.to_string(), "none");
        assert!(Features::ALL.contains(two) && !two.contains(Features::ALL));
        assert_eq!(two.without(Features::ORDER), Features::VECTORED);
    }
}
