//! How a session may use a volume beside the other sessions. Pure.

use std::fmt;

use ferrio_api::v1;
use serde::{Deserialize, Serialize};

/// Access to a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Access {
    /// Reads; lives beside every other access.
    ReadOnly,
    /// Reads and writes; admits no other writer.
    ReadWrite,
    /// Reads and writes; admits only writers that ask for the same.
    ReadWriteShared,
}

impl Access {
    /// Whether requests may change the volume.
    pub fn writes(self) -> bool {
        self != Self::ReadOnly
    }

    /// Whether one session may hold `self` while another holds `other`. Symmetric.
    pub fn lives_beside(self, other: Self) -> bool {
        !(self.writes() && other.writes())
            || (self == Self::ReadWriteShared && other == Self::ReadWriteShared)
    }

    /// From the wire; `None` where the client did not say, or said something unknown.
    pub fn from_wire(access: i32) -> Option<Self> {
        match v1::Access::try_from(access).ok()? {
            v1::Access::Unspecified => None,
            v1::Access::ReadOnly => Some(Self::ReadOnly),
            v1::Access::ReadWrite => Some(Self::ReadWrite),
            v1::Access::ReadWriteShared => Some(Self::ReadWriteShared),
        }
    }

    /// To the wire.
    pub fn to_wire(self) -> i32 {
        let access = match self {
            Self::ReadOnly => v1::Access::ReadOnly,
            Self::ReadWrite => v1::Access::ReadWrite,
            Self::ReadWriteShared => v1::Access::ReadWriteShared,
        };
        access.into()
    }
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ReadOnly => "ro",
            Self::ReadWrite => "rw",
            Self::ReadWriteShared => "rw-shared",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::Access::{self, ReadOnly as Ro, ReadWrite as Rw, ReadWriteShared as Shared};

    #[test]
    fn matrix() {
        let cases = [
            (Ro, Ro, true),
            (Ro, Rw, true),
            (Ro, Shared, true),
            (Rw, Rw, false),
            (Rw, Shared, false),
            (Shared, Shared, true),
        ];
        for (one, other, together) in cases {
            assert_eq!(one.lives_beside(other), together, "{one} beside {other}");
            assert_eq!(other.lives_beside(one), together, "{other} beside {one}");
        }
    }

    #[test]
    fn the_wire_has_every_access_and_an_unknown_is_none() {
        for access in [Ro, Rw, Shared] {
            assert_eq!(Access::from_wire(access.to_wire()), Some(access));
        }
        assert_eq!(Access::from_wire(0), None);
        assert_eq!(Access::from_wire(99), None);
    }
}
