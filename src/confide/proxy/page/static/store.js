// Conversations in this browser's IndexedDB, and nowhere else. Each message is a record of its own, so that writing one
// takes as long in a long conversation as in a short one.

const NAME = "confide";

const done = (request) => new Promise((resolve, reject) => {
  request.onsuccess = () => resolve(request.result);
  request.onerror = () => reject(request.error);
});

export class Store {
  #database;

  static async open() {
    const request = indexedDB.open(NAME, 1);
    request.onupgradeneeded = () => {
      request.result.createObjectStore("conversations", { keyPath: "id" });
      request.result.createObjectStore("messages", { keyPath: ["conversation", "place", "id"] });
    };
    const store = new Store();
    store.#database = await done(request);
    // Another tab may have to change or delete it.
    store.#database.onversionchange = () => store.#database.close();
    return store;
  }

  #change(names, work) {
    const transaction = this.#database.transaction(names, "readwrite");
    work(...names.map((name) => transaction.objectStore(name)));
    return new Promise((resolve, reject) => {
      transaction.oncomplete = () => resolve();
      transaction.onerror = transaction.onabort = () => reject(transaction.error);
    });
  }

  async conversations() {
    const all = await done(this.#database.transaction("conversations").objectStore("conversations").getAll());
    return all.sort((one, other) => other.changed - one.changed);
  }

  messages(conversation) {
    return done(this.#database.transaction("messages").objectStore("messages").getAll(range(conversation)));
  }

  saveConversation(conversation) {
    return this.#change(["conversations"], (conversations) => conversations.put(conversation));
  }

  saveMessage(message) {
    return this.#change(["messages"], (messages) => messages.put(message));
  }

  saveMessages(all) {
    return this.#change(["messages"], (messages) => { for (const message of all) messages.put(message); });
  }

  // From a place on.
  forgetFrom(conversation, place) {
    return this.#change(["messages"], (messages) => messages.delete(range(conversation, place)));
  }

  forget(conversation) {
    return this.#change(["conversations", "messages"], (conversations, messages) => {
      conversations.delete(conversation);
      messages.delete(range(conversation));
    });
  }

  forgetAll() {
    return this.#change(["conversations", "messages"], (conversations, messages) => {
      conversations.clear();
      messages.clear();
    });
  }
}

const range = (conversation, place = 0) => IDBKeyRange.bound([conversation, place], [conversation, []]);
