//! Join tokens: `VXMTKN-1-<base32 SHA-256 of the CA certificate>-<base32 secret>`.
//!
//! The text is shown once; the store keeps SHA-256 of the secret, and every compare takes the same
//! time for every secret. An expired or used token is kept for a day, so that a late joiner hears
//! why it is refused.

use std::{fmt, str::FromStr};

use data_encoding::{BASE32_NOPAD, HEXLOWER};
use ring::digest;
use serde::{Deserialize, Serialize};
use subtle::ConstantTimeEq;
use thiserror::Error;
use zeroize::Zeroizing;

use super::random;
use crate::store::{Store, StoreError, Table};

const PREFIX: &str = "VXMTKN";
const DIGEST_CHARS: usize = 52;
const SECRET_CHARS: usize = 26;
/// Bytes of a token's secret: 128 bits.
pub const SECRET_LEN: usize = 16;
/// Tokens in the store; each is compared on every join.
const TOKENS: usize = 1024;
/// Seconds for which a token that admits nobody any more is still known.
const KEPT: u64 = 24 * 3600;

/// Why a text is no token.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum TokenParseError {
    /// Another kind of text.
    #[error(
        "this is not a join token: one begins with VXMTKN-1- and is printed by `vxmesh token create`"
    )]
    Prefix,
    /// From a newer program.
    #[error("this join token is of a newer kind: upgrade vxmesh on this host")]
    Version,
    /// Cut off or mistyped.
    #[error(
        "this join token is damaged or cut off: copy the whole line that `vxmesh token create` printed"
    )]
    Damaged,
}

/// Why a token could not be made.
#[derive(Debug, Error)]
pub enum TokenError {
    /// The lifetime ends beyond what a clock can say, or at once.
    #[error("a token's lifetime is between one second and ten years")]
    Ttl,
    /// A token that admits nobody.
    #[error("a token needs at least one use")]
    Uses,
    /// The bound on tokens is reached.
    #[error("there are {TOKENS} tokens already: revoke some with `vxmesh token revoke`")]
    Full,
    /// The system gave no random bytes.
    #[error(transparent)]
    Random(#[from] super::IdentityError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A parsed token. Its `Debug` form shows no secret.
#[derive(Clone)]
pub struct Token {
    ca_digest: [u8; 32],
    secret: Zeroizing<[u8; SECRET_LEN]>,
}

impl Token {
    /// SHA-256 of the mesh CA's certificate.
    #[must_use]
    pub const fn ca_digest(&self) -> &[u8; 32] {
        &self.ca_digest
    }

    /// The secret part.
    #[must_use]
    pub fn secret(&self) -> &[u8; SECRET_LEN] {
        &self.secret
    }

    /// The text that a user passes on; the only way to see the secret.
    #[must_use]
    pub fn reveal(&self) -> String {
        let ca = BASE32_NOPAD.encode(&self.ca_digest).to_ascii_lowercase();
        let secret = BASE32_NOPAD.encode(self.secret.as_slice()).to_ascii_lowercase();
        format!("{PREFIX}-1-{ca}-{secret}")
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(..)")
    }
}

impl FromStr for Token {
    type Err = TokenParseError;

    fn from_str(text: &str) -> Result<Self, TokenParseError> {
        let mut parts = text.trim().split('-');
        if parts.next() != Some(PREFIX) {
            return Err(TokenParseError::Prefix);
        }
        match parts.next() {
            Some("1") => {}
            Some(number) if number.parse::<u32>().is_ok() => return Err(TokenParseError::Version),
            Some(_) | None => return Err(TokenParseError::Prefix),
        }
        let ca_digest = part(parts.next(), DIGEST_CHARS)?;
        let secret = Zeroizing::new(part(parts.next(), SECRET_CHARS)?);
        if parts.next().is_some() {
            return Err(TokenParseError::Damaged);
        }
        Ok(Self { ca_digest, secret })
    }
}

fn part<const N: usize>(text: Option<&str>, chars: usize) -> Result<[u8; N], TokenParseError> {
    text.filter(|text| text.len() == chars)
        .and_then(|text| BASE32_NOPAD.decode(text.to_ascii_uppercase().as_bytes()).ok())
        .and_then(|bytes| bytes.try_into().ok())
        .ok_or(TokenParseError::Damaged)
}

/// A token as the store keeps it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct StoredToken {
    /// For `token ls|revoke`.
    pub id: String,
    /// SHA-256 of the secret, hexadecimal.
    secret_hash: String,
    /// Unix seconds.
    pub created_at: u64,
    /// Unix seconds.
    pub expires_at: u64,
    /// Joins left; nothing means no limit.
    pub uses_left: Option<u32>,
}

impl StoredToken {
    /// `valid`, `expired`, `used`.
    #[must_use]
    pub fn state(&self, now: u64) -> &'static str {
        match self.check(now) {
            Ok(()) => "valid",
            Err(Denied::Expired) => "expired",
            Err(Denied::Used | Denied::Unknown) => "used",
        }
    }

    fn check(&self, now: u64) -> Result<(), Denied> {
        if self.uses_left == Some(0) {
            Err(Denied::Used)
        } else if now >= self.expires_at {
            Err(Denied::Expired)
        } else {
            Ok(())
        }
    }
}

/// Why a token admits nobody.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Denied {
    /// Never made here, or revoked.
    Unknown,
    /// Its time is over.
    Expired,
    /// It admitted as many as it may.
    Used,
}

/// Makes a token for the mesh of `ca`; times are unix seconds.
///
/// # Errors
///
/// The lifetime or uses make no sense, or the store fails.
pub fn create(
    store: &Store,
    ca: &[u8],
    now: u64,
    ttl: u64,
    uses: Option<u32>,
) -> Result<(Token, StoredToken), TokenError> {
    const TEN_YEARS: u64 = 10 * 366 * 24 * 3600;
    if ttl == 0 || ttl > TEN_YEARS {
        return Err(TokenError::Ttl);
    }
    if uses == Some(0) {
        return Err(TokenError::Uses);
    }
    let token = Token { ca_digest: sha256(ca), secret: Zeroizing::new(random()?) };
    let stored = StoredToken {
        id: HEXLOWER.encode(&random::<6>()?),
        secret_hash: HEXLOWER.encode(&sha256(token.secret())),
        created_at: now,
        expires_at: now.saturating_add(ttl),
        uses_left: uses,
    };
    let full = store.write(|txn| {
        let mut count = 0;
        for (id, old) in txn.list::<StoredToken>(Table::Tokens)? {
            if old.check(now).is_err() && now >= old.expires_at.saturating_add(KEPT) {
                txn.delete(Table::Tokens, &id)?;
            } else {
                count += 1;
            }
        }
        if count < TOKENS {
            txn.put(Table::Tokens, &stored.id, &stored)?;
        }
        Ok(count >= TOKENS)
    })?;
    if full { Err(TokenError::Full) } else { Ok((token, stored)) }
}

/// All tokens, oldest first.
///
/// # Errors
///
/// The store fails.
pub fn list(store: &Store) -> Result<Vec<StoredToken>, StoreError> {
    let mut tokens: Vec<StoredToken> =
        store.list(Table::Tokens)?.into_iter().map(|(_, token)| token).collect();
    tokens.sort_by(|a, b| (a.created_at, &a.id).cmp(&(b.created_at, &b.id)));
    Ok(tokens)
}

/// Forgets a token. Whether there was one.
///
/// # Errors
///
/// The store fails.
pub fn revoke(store: &Store, id: &str) -> Result<bool, StoreError> {
    store.write(|txn| txn.delete(Table::Tokens, id))
}

/// Whether the token with this secret admits somebody at this time; no use is taken.
///
/// # Errors
///
/// The store fails; the inner error says why the token admits nobody.
pub fn check(store: &Store, secret: &[u8], now: u64) -> Result<Result<(), Denied>, StoreError> {
    let hash = HEXLOWER.encode(&sha256(secret));
    let mut found = Err(Denied::Unknown);
    for token in list(store)? {
        if bool::from(token.secret_hash.as_bytes().ct_eq(hash.as_bytes())) {
            found = token.check(now);
        }
    }
    Ok(found)
}

/// Takes one use of the token with this secret; durable when it returns.
///
/// # Errors
///
/// The store fails; the inner error says why the token admits nobody.
pub fn consume(store: &Store, secret: &[u8], now: u64) -> Result<Result<(), Denied>, StoreError> {
    let hash = HEXLOWER.encode(&sha256(secret));
    store.write(|txn| {
        let mut found = None;
        for (_, token) in txn.list::<StoredToken>(Table::Tokens)? {
            if bool::from(token.secret_hash.as_bytes().ct_eq(hash.as_bytes())) {
                found = Some(token);
            }
        }
        let Some(mut token) = found else { return Ok(Err(Denied::Unknown)) };
        if let Err(denied) = token.check(now) {
            return Ok(Err(denied));
        }
        if let Some(uses) = &mut token.uses_left {
            *uses = uses.saturating_sub(1);
            txn.put(Table::Tokens, &token.id, &token)?;
        }
        Ok(Ok(()))
    })
}

/// SHA-256 (FIPS 180-4).
#[must_use]
pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    out.copy_from_slice(digest::digest(&digest::SHA256, bytes).as_ref());
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store() -> (tempfile::TempDir, Store) {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("state.redb")).unwrap();
        (dir, store)
    }

    #[test]
    fn text_round_trip() {
        let (_dir, store) = store();
        let (token, _) = create(&store, b"ca", 1000, 60, None).unwrap();
        let text = token.reveal();
        let again: Token = format!(" {text}\n").parse().unwrap();
        assert_eq!(again.secret(), token.secret());
        assert_eq!(again.ca_digest(), &sha256(b"ca"));
        assert!(!format!("{token:?}").contains(&text[text.len() - 26..]));
    }

    #[test]
    fn bad_texts_are_told_apart() {
        let (_dir, store) = store();
        let text = create(&store, b"ca", 1000, 60, None).unwrap().0.reveal();
        let cases = [
            (String::new(), TokenParseError::Prefix),
            ("SWMTKN-1-x-y".into(), TokenParseError::Prefix),
            ("VXMTKN".into(), TokenParseError::Prefix),
            ("VXMTKN-x".into(), TokenParseError::Prefix),
            (text.replacen("-1-", "-2-", 1), TokenParseError::Version),
            (text[..text.len() - 1].into(), TokenParseError::Damaged),
            (format!("{text}a"), TokenParseError::Damaged),
            (format!("{text}-a"), TokenParseError::Damaged),
            ("VXMTKN-1".into(), TokenParseError::Damaged),
            (text.replacen(&text[9..11], "1!", 1), TokenParseError::Damaged),
            ("VXMTKN-1-é-é".into(), TokenParseError::Damaged),
        ];
        for (text, error) in cases {
            assert_eq!(text.parse::<Token>().unwrap_err(), error, "{text}");
        }
    }

    #[test]
    fn a_token_admits_as_often_and_as_long_as_it_says() {
        let (_dir, store) = store();
        let (token, stored) = create(&store, b"ca", 1000, 60, Some(2)).unwrap();
        assert_eq!(check(&store, token.secret(), 1059).unwrap(), Ok(()));
        assert_eq!(check(&store, token.secret(), 1060).unwrap(), Err(Denied::Expired));
        assert_eq!(check(&store, &[0; 16], 1000).unwrap(), Err(Denied::Unknown));
        assert_eq!(consume(&store, token.secret(), 1060).unwrap(), Err(Denied::Expired));
        assert_eq!(consume(&store, token.secret(), 1059).unwrap(), Ok(()));
        assert_eq!(consume(&store, token.secret(), 1000).unwrap(), Ok(()));
        assert_eq!(consume(&store, token.secret(), 1000).unwrap(), Err(Denied::Used));
        assert_eq!(list(&store).unwrap()[0].state(1000), "used");
        assert_eq!(consume(&store, &[0; 16], 1000).unwrap(), Err(Denied::Unknown));
        assert!(revoke(&store, &stored.id).unwrap());
        assert!(!revoke(&store, &stored.id).unwrap());
        assert_eq!(consume(&store, token.secret(), 1000).unwrap(), Err(Denied::Unknown));
    }

    #[test]
    fn senseless_tokens_are_refused_and_old_ones_forgotten() {
        let (_dir, store) = store();
        assert!(matches!(create(&store, b"ca", 0, 0, None), Err(TokenError::Ttl)));
        assert!(matches!(create(&store, b"ca", 0, u64::MAX, None), Err(TokenError::Ttl)));
        assert!(matches!(create(&store, b"ca", 0, 1, Some(0)), Err(TokenError::Uses)));
        create(&store, b"ca", 0, 1, None).unwrap();
        create(&store, b"ca", KEPT, 1, None).unwrap();
        assert_eq!(list(&store).unwrap().len(), 2);
        create(&store, b"ca", KEPT + 1, 1, None).unwrap();
        assert_eq!(list(&store).unwrap().len(), 2);
    }

    #[test]
    fn the_store_never_holds_a_secret() {
        let (dir, store) = store();
        let (token, _) = create(&store, b"ca", 0, 10, None).unwrap();
        drop(store);
        let bytes = std::fs::read(dir.path().join("state.redb")).unwrap();
        let text = BASE32_NOPAD.encode(token.secret()).to_ascii_lowercase();
        for secret in
            [token.secret().as_slice(), text.as_bytes(), HEXLOWER.encode(token.secret()).as_bytes()]
        {
            assert!(!bytes.windows(secret.len()).any(|window| window == secret));
        }
    }
}
