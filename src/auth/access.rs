//! Everything that says who may come in: what the three files hold, read at start and at each
//! reload.

use crate::auth::hba::Hba;
use crate::auth::ident::Ident;
use crate::auth::userlist::Userlist;

/// See the module's page.
#[derive(Clone, Debug, Default)]
pub struct Access {
    /// The users and their secrets (`auth_file`).
    pub userlist: Userlist,
    /// Who has to prove himself how (`auth_hba_file`).
    pub hba: Hba,
    /// Who may be whom (`auth_ident_file`).
    pub ident: Ident,
}

impl From<Userlist> for Access {
    fn from(userlist: Userlist) -> Self {
        Self { userlist, ..Self::default() }
    }
}
