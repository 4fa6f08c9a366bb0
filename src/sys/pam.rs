//! Asking the system's stack of modules (PAM) about a password.

use libc::{c_char, c_int, c_void};
use std::ffi::{CStr, CString};

const SUCCESS: c_int = 0;
const CONVERSATION_ERROR: c_int = 19;
const PROMPT_ECHO_OFF: c_int = 1;
const PROMPT_ECHO_ON: c_int = 2;
const REMOTE_HOST: c_int = 4;
const SILENT: c_int = 0x8000;
/// As many messages at once as PAM may send.
const MAX_MESSAGES: c_int = 32;

#[repr(C)]
struct Message {
    style: c_int,
    text: *const c_char,
}

#[repr(C)]
struct Response {
    text: *mut c_char,
    /// Unused, zero.
    code: c_int,
}

#[repr(C)]
struct Conversation {
    talk: extern "C" fn(c_int, *mut *const Message, *mut *mut Response, *mut c_void) -> c_int,
    data: *mut c_void,
}

#[repr(C)]
struct Handle {
    _opaque: [u8; 0],
}

#[link(name = "pam")]
unsafe extern "C" {
    fn pam_start(
        service: *const c_char,
        user: *const c_char,
        conversation: *const Conversation,
        handle: *mut *mut Handle,
    ) -> c_int;
    fn pam_set_item(handle: *mut Handle, item: c_int, value: *const c_void) -> c_int;
    fn pam_authenticate(handle: *mut Handle, flags: c_int) -> c_int;
    fn pam_acct_mgmt(handle: *mut Handle, flags: c_int) -> c_int;
    fn pam_strerror(handle: *mut Handle, code: c_int) -> *const c_char;
    fn pam_end(handle: *mut Handle, code: c_int) -> c_int;
}

/// Answers PAM's questions: each one that asks for something secret, with the password.
extern "C" fn tell_password(
    count: c_int,
    messages: *mut *const Message,
    responses: *mut *mut Response,
    password: *mut c_void,
) -> c_int {
    let Some(amount) = usize::try_from(count).ok().filter(|_| count <= MAX_MESSAGES) else {
        return CONVERSATION_ERROR;
    };
    // SAFETY: calloc takes two numbers; PAM frees what we return, and zeroes are empty responses.
    let answers: *mut Response =
        unsafe { libc::calloc(amount.max(1), size_of::<Response>()).cast() };
    if answers.is_null() {
        return CONVERSATION_ERROR;
    }
    let mut is_answered = true;
    for at in 0..amount {
        // SAFETY: PAM gives `count` pointers to messages, and `answers` has room for as many. The
        // password is the C text of `confirms`, which outlives the conversation.
        unsafe {
            match (**messages.add(at)).style {
                PROMPT_ECHO_OFF => {
                    let copy = libc::strdup(password.cast());
                    is_answered &= !copy.is_null();
                    (*answers.add(at)).text = copy;
                }
                // Somebody who wants to be told more than a password gets nothing.
                PROMPT_ECHO_ON => is_answered = false,
                _ => {}
            }
        }
    }
    if is_answered {
        // SAFETY: PAM gives a place for the answers, which are PAM's from now on.
        unsafe { *responses = answers };
        return SUCCESS;
    }
    for at in 0..amount {
        // SAFETY: each text is null or from strdup, and nobody else has it.
        unsafe { libc::free((*answers.add(at)).text.cast()) };
    }
    // SAFETY: it is from calloc, and nobody else has it.
    unsafe { libc::free(answers.cast()) };
    CONVERSATION_ERROR
}

/// Whether PAM takes this for the user's password, and lets him in now; if not, its words. It may
/// take seconds: not for the loop.
pub fn confirms(
    service: &str,
    user: &str,
    password: &[u8],
    remote_host: &str,
) -> Result<(), String> {
    let text = |bytes: &[u8]| CString::new(bytes).map_err(|_| "a NUL in a text".to_owned());
    let (service, user) = (text(service.as_bytes())?, text(user.as_bytes())?);
    let (password, remote_host) = (text(password)?, text(remote_host.as_bytes())?);
    let data = password.as_ptr().cast_mut().cast();
    let conversation = Conversation { talk: tell_password, data };
    let mut handle = std::ptr::null_mut();
    // SAFETY: all pointers are to texts and a structure that outlive the handle, which ends below.
    // No other thread knows the handle. What PAM says of an error is a static text.
    unsafe {
        let begun = pam_start(service.as_ptr(), user.as_ptr(), &conversation, &mut handle);
        if begun != SUCCESS || handle.is_null() {
            return Err(format!("pam_start() failed: {begun}"));
        }
        let host = remote_host.as_ptr().cast();
        let steps: [(&str, &dyn Fn() -> c_int); 3] = [
            ("pam_set_item", &|| pam_set_item(handle, REMOTE_HOST, host)),
            ("pam_authenticate", &|| pam_authenticate(handle, SILENT)),
            ("pam_acct_mgmt", &|| pam_acct_mgmt(handle, SILENT)),
        ];
        let mut outcome = Ok(());
        let mut last = SUCCESS;
        for (name, step) in steps {
            last = step();
            if last != SUCCESS {
                let words = pam_strerror(handle, last);
                let words = if words.is_null() { c"unknown error" } else { CStr::from_ptr(words) };
                outcome = Err(format!("{name}() failed: {}", words.to_string_lossy()));
                break;
            }
        }
        pam_end(handle, last);
        outcome
    }
}
