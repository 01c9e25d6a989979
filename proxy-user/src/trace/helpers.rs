//! What only the kernel can tell: routes and sockets, asked by a program that has the code of the packet
//! path for it (`kp_ask`), run by BPF_PROG_TEST_RUN.

use aya::{
    Ebpf, TestRun as _, TestRunOptions,
    programs::{ProgramError, SchedClassifier},
};
use proxy_common::{
    abi::{Addr, Inquiry, SockAddr, Tuple},
    datapath::{
        flow::Flow,
        path::{Route, Way},
    },
};

use super::context::Context;
use crate::loader::{Features, ask_program};

/// Before the question: a test run takes an Ethernet header. The type is one for experiments (IEEE 802), so
/// that the kernel takes nothing behind it for IP.
const HEADER: [u8; 14] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x88, 0xb5];

#[derive(Debug)]
pub(super) struct Helpers {
    ebpf: Ebpf,
}

impl Helpers {
    pub(super) fn load(features: Features) -> Result<Self, String> {
        Ok(Self {
            ebpf: ask_program(features)?,
        })
    }

    /// As `Node::route`, at this device.
    pub(super) fn route(
        &self,
        ifindex: u32,
        flow: &Flow,
        to: &SockAddr,
    ) -> Result<(Way, Route), String> {
        let answered = self.ask(
            ifindex,
            Inquiry {
                // An ICMP error's outer source is not its tuple's; no other question has such.
                tuple: Tuple {
                    src: flow.outer_src,
                    ..flow.tuple
                },
                class: flow.class,
                ..inquiry(Inquiry::ROUTE, *to)
            },
        )?;
        let way = match answered.answer {
            Inquiry::YES => Way::Forward,
            Inquiry::FORWARDING_OFF => Way::ForwardingOff,
            _ => Way::Nowhere,
        };
        let hop = Route {
            ifindex: answered.ifindex,
            gateway: answered.gateway,
        };
        Ok((way, hop))
    }

    /// As `Node::has_socket`.
    pub(super) fn has_socket(&self, ifindex: u32, tuple: &Tuple) -> Result<bool, String> {
        let nowhere = SockAddr::from_parts(Addr::default(), 0);
        let answered = self.ask(
            ifindex,
            Inquiry {
                tuple: *tuple,
                ..inquiry(Inquiry::SOCKET, nowhere)
            },
        )?;
        Ok(answered.answer == Inquiry::YES)
    }

    fn ask(&self, ifindex: u32, inquiry: Inquiry) -> Result<Inquiry, String> {
        let program: &SchedClassifier = self
            .ebpf
            .program("kp_ask")
            .and_then(|program| program.try_into().ok())
            .ok_or("the program kp_ask is missing in the kernel object")?;
        let mut frame = HEADER.to_vec();
        frame.extend(inquiry.to_bytes());
        let mut out = vec![0; frame.len()];
        let context = Context::at_device(ifindex);
        program
            .test_run(TestRunOptions {
                data_in: Some(&frame),
                data_out: Some(&mut out),
                ctx_in: Some(context.bytes()),
                repeat: 1,
                ..TestRunOptions::default()
            })
            .map_err(|error: ProgramError| format!("the helpers can't be asked: {error}"))?;
        let answered = out[HEADER.len()..]
            .first_chunk()
            .map(|bytes| Inquiry::from_bytes(*bytes));
        answered
            .filter(|answered| answered.answer != 0)
            .ok_or_else(|| "the helpers gave no answer".to_owned())
    }
}

const fn inquiry(kind: u32, to: SockAddr) -> Inquiry {
    let nobody = Addr { words: [0; 4] };
    Inquiry {
        tuple: Tuple {
            src: nobody,
            dst: nobody,
            src_port_be: 0,
            dst_port_be: 0,
            protocol: 0,
            zero: [0; 3],
        },
        to,
        kind,
        class: 0,
        answer: 0,
        ifindex: 0,
        gateway: nobody,
    }
}
