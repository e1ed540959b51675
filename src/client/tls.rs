//! TLS of the client: whom it trusts, and the certificate that it shows.

use std::path::{Path, PathBuf};

use super::error::{ClientError, chain};

/// The largest file that is read, in bytes.
const FILE_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// Whom a client trusts, and what it shows. The default trusts the authorities of the platform and shows nothing. The files are read
/// once, when the client is made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClientTls {
    /// The authorities that may sign the server's certificate, as PEM. Without it those of the platform, or of `SSL_CERT_FILE`.
    pub ca: Option<PathBuf>,
    /// The client's own certificate, with those between it and its authority, and its private key, both as PEM.
    pub identity: Option<(PathBuf, PathBuf)>,
}

impl ClientTls {
    /// Has `builder` trust and show that.
    ///
    /// # Errors
    /// [`ClientError::Invalid`] with the file that is not good.
    pub(crate) fn build(&self, mut builder: reqwest::ClientBuilder) -> Result<reqwest::ClientBuilder, ClientError> {
        let wrong = |file: &Path, why: &str| ClientError::Invalid(format!("{}: {why}", file.display()));
        if let Some(file) = &self.ca {
            let found = reqwest::Certificate::from_pem_bundle(&read(file)?);
            let found = found.map_err(|error| wrong(file, &chain(&error)))?;
            if found.is_empty() {
                return Err(wrong(file, "there is no certificate in it"));
            }
            builder = builder.tls_certs_only(found);
        }
        if let Some((certificate, key)) = &self.identity {
            let pem = [read(certificate)?, b"\n".to_vec(), read(key)?].concat();
            let identity = reqwest::Identity::from_pem(&pem).map_err(|error| {
                wrong(certificate, &format!("with the key in {}: {}", key.display(), chain(&error)))
            })?;
            builder = builder.identity(identity);
        }
        Ok(builder)
    }
}

fn read(file: &Path) -> Result<Vec<u8>, ClientError> {
    let wrong = |why: String| ClientError::Invalid(format!("{}: {why}", file.display()));
    let size = std::fs::metadata(file).map_err(|error| wrong(error.to_string()))?.len();
    if size > FILE_BYTES_MAX {
        return Err(wrong(format!("it has {size} bytes, and at most {FILE_BYTES_MAX} are read")));
    }
    std::fs::read(file).map_err(|error| wrong(error.to_string()))
}
