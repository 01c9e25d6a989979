//! SCTP's checksum after its ports changed, without reading the packet.
//!
//! CRC32c is linear: the checksums of two packets of one length differ by the CRC (without initial
//! value) of where they differ. That is the four bytes of the ports followed by zeroes, and what
//! zeroes do to a CRC is a multiplication by a power of x. By the hexadecimal digits of their number it
//! is four of them for any length, and by those of the CRC each is eight look-ups: no walk over up to
//! 64 KiB, and no step that depends on a bit. The verifiers of Linux 6.18 and later follow both ways of
//! such a step also when it is arithmetic, `a & -bit`.

/// The Castagnoli polynomial, bits reversed.
const POLYNOMIAL: u32 = 0x82f6_3b78;

/// `x^0`: bits are reversed.
const ONE: u32 = 1 << 31;

/// What every hexadecimal digit of a CRC becomes, by its place.
type Product = [[u32; 16]; 8];

/// `x^(8 * digit * 16^place)` times a CRC: what zero bytes do to it, by the digits of their number. 32 KiB.
static ZERO_BYTES: [[Product; 16]; 4] = {
    let mut products = [[[[0; 16]; 8]; 16]; 4];
    // x^8
    let mut step = ONE >> 8;
    let mut place = 0;
    while place < 4 {
        let mut power = ONE;
        let mut digit = 0;
        while digit < 16 {
            products[place][digit] = times(power);
            power = multiply(power, step);
            digit += 1;
        }
        step = power;
        place += 1;
    }
    products
};

const fn times(factor: u32) -> Product {
    let mut product = [[0; 16]; 8];
    let mut place = 0;
    while place < 8 {
        let mut digit = 1_u32;
        while digit < 16 {
            let rest = digit & (digit - 1);
            product[place][digit as usize] = if rest == 0 {
                multiply(factor, digit << (4 * place))
            } else {
                product[place][rest as usize] ^ product[place][(digit ^ rest) as usize]
            };
            digit += 1;
        }
        place += 1;
    }
    product
}

/// `a * b` modulo the polynomial.
const fn multiply(a: u32, b: u32) -> u32 {
    let mut product = 0;
    let mut b = b;
    let mut bit = 0;
    while bit < 32 {
        if (a >> (31 - bit)) & 1 == 1 {
            product ^= b;
        }
        b = (b >> 1) ^ if b & 1 == 1 { POLYNOMIAL } else { 0 };
        bit += 1;
    }
    product
}

/// What to XOR a CRC32c with (host order, as its little-endian field is read) when the first four of
/// `length` bytes change by `change`, read as little-endian.
#[inline(always)]
pub fn change(change: u32, length: u32) -> u32 {
    // A CRC register that took in four bytes and nothing before is those bytes times x^32; the CRC of
    // the rest adds `length - 4` zero bytes: together x^(8 * length).
    let mut crc = change;
    let mut place = 0;
    while place < 4 {
        let product = &ZERO_BYTES[place][((length >> (4 * place)) & 0xf) as usize];
        let mut next = 0;
        let mut digit = 0;
        while digit < 8 {
            next ^= product[digit][((crc >> (4 * digit)) & 0xf) as usize];
            digit += 1;
        }
        crc = next;
        place += 1;
    }
    crc
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bit by bit, as RFC 9260 Appendix A has it.
    fn crc32c(bytes: &[u8]) -> u32 {
        !bytes.iter().fold(!0_u32, |crc, byte| {
            (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
                if crc & 1 == 1 {
                    (crc >> 1) ^ POLYNOMIAL
                } else {
                    crc >> 1
                }
            })
        })
    }

    #[test]
    fn the_reference_is_crc32c() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn changed_ports_change_the_checksum_as_a_full_walk_does() {
        for length in [4_usize, 12, 13, 28, 1000, 1480, 65_535] {
            let before: Vec<u8> = (0..length)
                .map(|i| u8::try_from(i * 7 % 251).unwrap())
                .collect();
            let mut after = before.clone();
            after[..4].copy_from_slice(&[0x1f, 0x90, 0x00, 0x35]);
            let head = |bytes: &[u8]| u32::from_le_bytes(bytes[..4].try_into().unwrap());
            let difference = change(head(&before) ^ head(&after), u32::try_from(length).unwrap());
            assert_eq!(crc32c(&before) ^ difference, crc32c(&after), "{length}");
        }
    }
}
