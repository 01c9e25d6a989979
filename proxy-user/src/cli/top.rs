use std::{
    io::{self, IsTerminal as _},
    thread::sleep,
    time::{Duration, Instant},
};

use clap::Args;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

use super::{CliError, PinArgs, filter::FilterArgs, output};
use crate::top::{
    Sample,
    read::Reader,
    rows::{self, Order, ServiceRow},
    screen::{Key, Screen},
    view::{self, Look},
};

/// Of this machine, reading the maps takes no more than one part in so many.
const SHARE: u32 = 10;

#[derive(Args, Debug)]
pub(super) struct TopArgs {
    #[command(flatten)]
    pins: PinArgs,
    #[command(flatten)]
    filter: FilterArgs,
    /// How often it looks.
    #[arg(long, value_name = "SECONDS", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=3600))]
    interval: u64,
    /// What comes first.
    #[arg(long, value_enum, default_value_t)]
    sort: Order,
    /// Look twice, print, and end. So it is too when the output is no terminal.
    #[arg(long)]
    once: bool,
    /// With --once: one JSON array.
    #[arg(long)]
    json: bool,
}

pub(super) fn execute(args: &TopArgs) -> Result<(), CliError> {
    let filter = args.filter.filter()?;
    let reader = Reader::new(&args.pins.pins()?)?;
    let first = reader.sample()?;
    let interval = Duration::from_secs(args.interval);
    if args.once || args.json || !io::stdout().is_terminal() {
        sleep(interval);
        let now = reader.sample()?;
        let rows = rows::services(&first, &now, &filter, args.sort);
        return print(&rows, args.json);
    }
    let mut screen = Screen::new(first, filter, args.sort);
    let mut terminal = ratatui::try_init().map_err(terminal)?;
    let watched = watch(&mut terminal, &mut screen, interval, || reader.sample());
    // Whatever happened, the terminal is as it was.
    ratatui::restore();
    watched
}

fn terminal(source: io::Error) -> CliError {
    CliError::Io {
        what: "the terminal",
        source,
    }
}

fn watch(
    terminal_: &mut ratatui::DefaultTerminal,
    screen: &mut Screen,
    interval: Duration,
    sample: impl Fn() -> Result<Sample, CliError>,
) -> Result<(), CliError> {
    let look = Look {
        is_coloured: !output::no_color(),
    };
    let mut due = Instant::now() + interval;
    while !screen.is_over {
        terminal_
            .draw(|frame| view::draw(frame, screen, look))
            .map_err(terminal)?;
        let wait = due.saturating_duration_since(Instant::now());
        if event::poll(wait).map_err(terminal)? {
            if let Event::Key(key) = event::read().map_err(terminal)?
                && let Some(key) = meaning(key)
            {
                screen.press(key);
            }
            continue;
        }
        let began = Instant::now();
        screen.take(sample()?);
        due = began + interval.max(began.elapsed() * SHARE);
    }
    Ok(())
}

fn meaning(key: KeyEvent) -> Option<Key> {
    if key.kind == KeyEventKind::Release {
        return None;
    }
    if key.modifiers.contains(KeyModifiers::CONTROL) {
        return (key.code == KeyCode::Char('c')).then_some(Key::Quit);
    }
    if let KeyCode::Char(letter) = key.code {
        return Some(Key::Letter(letter));
    }
    let keys = [
        (KeyCode::Up, Key::Up),
        (KeyCode::Down, Key::Down),
        (KeyCode::PageUp, Key::PageUp),
        (KeyCode::PageDown, Key::PageDown),
        (KeyCode::Home, Key::Home),
        (KeyCode::End, Key::End),
        (KeyCode::Enter, Key::Enter),
        (KeyCode::Right, Key::Enter),
        (KeyCode::Esc, Key::Back),
        (KeyCode::Left, Key::Back),
        (KeyCode::Backspace, Key::Erase),
    ];
    let found = keys.into_iter().find(|(code, _)| *code == key.code);
    found.map(|(_, key)| key)
}

fn print(rows: &[ServiceRow], json: bool) -> Result<(), CliError> {
    if json {
        return output::print(&output::json(&rows)?);
    }
    let mut table = output::table(
        output::width(),
        &[
            "SERVICE",
            "NEW/S",
            "ACTIVE",
            "ERRORS/S",
            "BACKENDS",
            "CONNECTIONS",
            "ERRORS",
        ],
    );
    for row in rows {
        table.add_row([
            row.service.clone(),
            view::per_second(row.new_per_second),
            row.active.to_string(),
            view::per_second(row.errors_per_second),
            row.backends.to_string(),
            row.connections.to_string(),
            row.errors.to_string(),
        ]);
    }
    output::print(&table.to_string())
}
