//! Last to be killed when memory runs out (BEHAVIOUR P14).

const FILE: &str = "/proc/self/oom_score_adj";

/// Goes on without it where that is not permitted, as the node may be set up so on purpose.
pub fn set_oom_score_adj(score: i16) {
    if let Err(error) = std::fs::write(FILE, score.to_string()) {
        log::warn!(
            "oomScoreAdj {score} can't be written to {FILE}: {error}; it needs CAP_SYS_RESOURCE; going on without"
        );
    }
}
