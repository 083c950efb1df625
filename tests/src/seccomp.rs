//! A seccomp filter for bubblewrap.

/// What Docker's default profile does to io_uring: EPERM for system calls 425 to 427, the rest allowed.
pub fn without_io_uring() -> Vec<u8> {
    let instruction = |code: u16, jump_true: u8, jump_false: u8, value: u32| {
        let mut bytes = code.to_le_bytes().to_vec();
        bytes.extend([jump_true, jump_false]);
        bytes.extend(value.to_le_bytes());
        bytes
    };
    [
        instruction(0x20, 0, 0, 0),
        instruction(0x35, 0, 2, 425),
        instruction(0x25, 1, 0, 427),
        instruction(0x06, 0, 0, 0x0005_0001),
        instruction(0x06, 0, 0, 0x7fff_0000),
    ]
    .concat()
}
