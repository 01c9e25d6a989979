use super::layout::abi_struct;

abi_struct! {
    /// Value of the map NAMES: who owns a service id. The programs never read it; it is how a
    /// restarted agent recognises its ids, and how `status` shows names with no agent running.
    ///
    /// `namespace/name:port`, at most 63 + 1 + 63 + 1 + 15 bytes (RFC 1123 labels, IANA port name).
    pub struct ServiceName {
        /// Bytes behind the length are 0.
        pub text: [u8; 144],
        /// Of the text, in bytes.
        pub length: u8,
        /// IANA protocol number.
        pub protocol: u8,
        /// 4 or 6.
        pub family: u8,
        /// 0 for the endpoints of the whole cluster, 1 for those of this node.
        pub scope: u8,
    }
}

#[cfg(any(test, feature = "std"))]
impl ServiceName {
    /// `None` if the text is too long to be a Service port's name.
    pub fn new(text: &str, protocol: u8, family: u8, scope: u8) -> Option<Self> {
        let mut bytes = [0u8; 144];
        bytes
            .get_mut(..text.len())?
            .copy_from_slice(text.as_bytes());
        Some(Self {
            text: bytes,
            length: u8::try_from(text.len()).ok()?,
            protocol,
            family,
            scope,
        })
    }

    /// What is not UTF-8 is shown as such: the map may be damaged.
    pub fn text(&self) -> std::borrow::Cow<'_, str> {
        let length = usize::from(self.length).min(self.text.len());
        String::from_utf8_lossy(&self.text[..length])
    }
}
