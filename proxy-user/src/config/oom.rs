//! Last to be killed when memory runs out (BEHAVIOUR P14).

use log::Level;

use super::schema::OOM_SCORE_ADJ;

const FILE: &str = "/proc/self/oom_score_adj";

/// Goes on without it where that is not permitted, as the node may be set up so on purpose: a warning
/// only where it was asked for.
pub fn set_oom_score_adj(score: i16) {
    if let Err(error) = std::fs::write(FILE, score.to_string()) {
        log::log!(
            told_as(score),
            "oomScoreAdj {score} can't be written to {FILE}: {error}; it needs CAP_SYS_RESOURCE; going on without"
        );
    }
}

fn told_as(score: i16) -> Level {
    if i32::from(score) == OOM_SCORE_ADJ {
        Level::Info
    } else {
        Level::Warn
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn that_the_default_is_not_permitted_is_no_warning() {
        assert_eq!(told_as(-999), Level::Info);
        assert_eq!(told_as(-998), Level::Warn);
    }
}
